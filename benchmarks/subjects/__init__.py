"""What stage 2 gives, costs and depends on."""
