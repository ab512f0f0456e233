"""Pictures and videos: reading, writing, strips and charts."""
