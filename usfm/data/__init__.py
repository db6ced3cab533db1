"""From a folder of images and CSV files to batches."""
