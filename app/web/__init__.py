"""The web page: frames and assets. Its modules run in the browser and call the REST API."""
