"""pyiqa's metrics as rewards: the adapter, and facts about the metrics without importing pyiqa."""
