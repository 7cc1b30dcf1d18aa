"""segdistill: a large promptable segmentation model and a handful of masks in; a small, prompt-free segmenter out."""
