"""From a folder of images to a config that compares training without and with VCReg, in the minutes at hand."""
