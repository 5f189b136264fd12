"""The application: data, training, probing and reports. Nothing here is part of the wheel."""
