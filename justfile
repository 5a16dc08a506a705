# Short names for what is done often. `just` is a convenience: everything works without it.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes
default:
    @just --list

# Everything a change must pass before it is sent; `ci/test` adds the long campaigns
check: fmt-check clippy tidy test doc deny

# Format all code
fmt:
    cargo fmt --all

fmt-check:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets -- -D warnings

# The house rules: imports, sizes, unsafe, names
tidy:
    cargo test --quiet --test tidy

# All tests, with nextest where it is installed
test *ARGS:
    if command -v cargo-nextest >/dev/null; then cargo nextest run --workspace {{ARGS}}; else cargo test --workspace {{ARGS}}; fi

# Judge N crash states: `just crash 1000000000`, and `SEED` to try others
crash N="10000000" SEED="1":
    ORLOP_CRASH_STATES={{N}} ORLOP_CRASH_SEED={{SEED}} cargo test --release --test crash -- --nocapture

# Live one life of the crash simulator again, by the seed a failure printed
crash-life SEED:
    ORLOP_CRASH_LIFE={{SEED}} cargo test --release --test crash one_life -- --nocapture

# Live N lives of many connections over files and sockets in memory
nbd-model N="20000":
    ORLOP_MODEL_LIVES={{N}} cargo test --release --test nbd_model -- --nocapture

# Fuzz a target (vhd_open, nbd_receive, engine_requests, nbd_session, management) with libFuzzer; needs cargo-fuzz
fuzz TARGET SECONDS="60":
    mkdir -p target/fuzz-corpus/{{TARGET}}
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} target/fuzz-corpus/{{TARGET}} fuzz/corpus/{{TARGET}} -- -max_total_time={{SECONDS}} -max_len=65536

# Replay the corpora and mutate them for 60 seconds each, without libFuzzer
fuzz-smoke SECONDS="60":
    ORLOP_FUZZ_SECONDS={{SECONDS}} cargo test --release --test fuzz_replay -- --nocapture

# Compare with other NBD servers and mounts, which are installed, in 25 minutes; docs/benchmarks/README.md
bench-peers *ARGS:
    cargo build --release
    python3 -B benches/peers --orlop target/release/orlop --install --calls {{ARGS}}

# What a client notices of others' abuse; options as in benches/abuse.py
bench-abuse *ARGS:
    cargo build --release
    ORLOP=target/release/orlop benches/abuse.py {{ARGS}}

# Mounted images against bare files, loop devices and other mounts; options as in benches/mounts.py
bench-mounts *ARGS:
    cargo build --release
    benches/mounts.py --orlop target/release/orlop {{ARGS}}

# A million random operations on mounted disks, with kills between
fsx OPERATIONS="340000" LIVES="40":
    ORLOP_FSX_OPERATIONS={{OPERATIONS}} ORLOP_FSX_LIVES={{LIVES}} cargo test --release --test mounted_disks random_operations -- --nocapture --test-threads=1

# Kill the daemon at random under many callers, N times
daemon-kill N="200":
    ORLOP_DAEMON_KILL_ROUNDS={{N}} cargo test --test daemon_kill random -- --nocapture

# Micro-benchmarks of looking up and of committing
bench:
    cargo bench --bench resolve
    cargo bench --bench commit
    cargo bench --bench repositories

# Count the instructions of the hot paths, and fail where they take more than recorded; needs valgrind
instructions:
    cargo bench --bench instructions

# Record what the hot paths take now, in benches/instructions/baseline.txt
instructions-record:
    cargo bench --bench instructions -- --record

# What programs by others make of our images and of our server
interop:
    CI=true cargo test --test 'interop_*' --test sigkill -- --nocapture

# Let a Linux kernel use our exports as disks, in a guest under QEMU
guest:
    tests/guest/run.sh

# The documentation, with warnings as errors
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, sources and bans of all dependencies
deny:
    PATH="$PWD/target/tools/bin:$PATH" cargo deny check bans licenses sources
