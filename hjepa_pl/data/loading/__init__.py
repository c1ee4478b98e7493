"""From a mixture of datasets to a batch on the device."""
