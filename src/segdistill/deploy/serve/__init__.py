"""A student behind HTTP: a page, masks, overlays, areas. Needs the extra `serve`; with an ONNX file no torch."""
