//! The FUSE frontend. Empty until the FUSE transport is built; the room keeps its place.
#![forbid(unsafe_code)]
