"""Reading and writing pictures and videos, and drawing strips and charts."""
