"""trimq: a message broker that speaks RocketMQ's wire protocol; this package is what applications import."""
