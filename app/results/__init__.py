"""Results of measurements that the data directory keeps, for the API and the web page."""
