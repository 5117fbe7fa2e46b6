//! The server as its callers see it, over a driver that is played.
