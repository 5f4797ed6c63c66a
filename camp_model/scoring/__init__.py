"""All pairs of images and captions, and the ranks that follow."""
