//! Pre-shared keys.
