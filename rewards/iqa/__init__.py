"""pyiqa's metrics as rewards: the adapter, and what is known of the metrics without importing pyiqa."""
