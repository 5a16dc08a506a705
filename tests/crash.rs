//! The crash simulator's tests: seeded lives, every short workload, failing effects, and the
//! seeded bugs that show that the knife is sharp.

#[path = "crash/bugs.rs"]
mod bugs;
#[path = "crash/checker.rs"]
mod checker;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "crash/populate.rs"]
mod populate;
#[path = "crash/probe.rs"]
mod probe;
#[path = "crash/runs.rs"]
mod runs;
#[path = "crash/tag.rs"]
mod tag;
#[path = "crash/work.rs"]
mod work;
#[path = "crash/world.rs"]
mod world;
