//! TLS against programs by others.
