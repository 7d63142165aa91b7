"""What lesions.py is made of: blobs pasted into pictures, and the maps that are to find them."""
