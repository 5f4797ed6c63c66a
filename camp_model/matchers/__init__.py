"""What scores pairs of images and captions."""
