"""`trimq bench`: what a cluster does with our own client library, measured from the outside."""
