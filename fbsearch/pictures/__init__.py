"""Networks and curves as images. Must not import training, data or study."""
