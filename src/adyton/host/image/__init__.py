"""Images: what a virtual machine starts from, built from a bundle so that equal input gives equal bytes."""
