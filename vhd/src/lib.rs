//! The VHD image format: bytes to checked types and back. Never opens, reads or waits.
#![forbid(unsafe_code)]
