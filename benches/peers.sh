#!/usr/bin/env bash
#
# Compares 'orlop serve' with other NBD servers over unix sockets, by 'orlop bench'.
#
# First every server must return what was written (at depths 1, 16, 64) and read the images as the
# others do; one that fails is listed as failed and gets no rate. Then all cases run in each round,
# in an order shuffled by the seed. Printed: medians with 95 % bootstrap intervals, throughput and
# server CPU per request, and ratios; where intervals overlap, no ratio is claimed.
#
#   ORLOP=target/release/orlop benches/peers.sh [options]
#     -r FILE   raw image to read           (made: 256 MiB of random bytes)
#     -v FILE   dynamic VHD, same content   (made from the raw one by qemu-img)
#     -c FILE   leaf of a deep VHD chain    (without it and -s the chain jobs are left out)
#     -s FILE   single image, same content as the chain
#     -n N      rounds (7)      -t SECS  per run (3)      -S SEED  of the shuffle (1)
#     -o DIR    keep the JSON reports there
#
# Environment: ORLOP (server and load generator), BENCH (another load generator), SERVE_ARGS,
# NBDKIT_ARGS, QEMU_ARGS (more options per server, such as for their cache modes).
# Given images are only read. Needs qemu-nbd, qemu-img, nbdkit, nbdcopy, python3; what is missing
# is left out aloud.

set -u -o pipefail

ORLOP=${ORLOP:-orlop}
BENCH=${BENCH:-$ORLOP}
raw='' vhd='' chain='' single='' rounds=7 seconds=3 seed=1 out=''
while getopts r:v:c:s:n:t:S:o: option; do
    case $option in
        r) raw=$OPTARG ;; v) vhd=$OPTARG ;; c) chain=$OPTARG ;; s) single=$OPTARG ;;
        n) rounds=$OPTARG ;; t) seconds=$OPTARG ;; S) seed=$OPTARG ;; o) out=$OPTARG ;;
        *) sed -n '3,24s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done

work=$(mktemp -d "${TMPDIR:-/tmp}/peers.XXXXXX") || exit 1
out=${out:-$work/reports}
socket=$work/nbd.sock
uri="nbd+unix:///?socket=$socket"
server_pid=''
mkdir -p "$out"

say() { printf '%s\n' "$*" >&2; }
die() { say "peers.sh: $*"; exit 1; }
have() { command -v "$1" >/dev/null; }

stop_server() {
    [ -n "$server_pid" ] || return 0
    kill "$server_pid" 2>/dev/null
    wait "$server_pid" 2>/dev/null
    server_pid=''
    rm -f "$socket"
}
clean_up() {
    stop_server
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# server_command SERVER IMAGE: fills the array 'command'.
server_command() {
    # The options are lists of words on purpose.
    # shellcheck disable=SC2206
    case $1 in
        orlop) command=("$ORLOP" serve "$2" --socket "$socket" ${SERVE_ARGS:-}) ;;
        nbdkit) command=(nbdkit -f -U "$socket" ${NBDKIT_ARGS:-} file "$2") ;;
        qemu-raw) command=(qemu-nbd -t -e 8 -f raw -k "$socket" ${QEMU_ARGS:-} "$2") ;;
        qemu-vpc) command=(qemu-nbd -t -e 8 -f vpc -k "$socket" ${QEMU_ARGS:-} "$2") ;;
        *) die "no server called $1" ;;
    esac
}

# start_server SERVER IMAGE: returns when it listens.
start_server() {
    local tries command
    server_command "$1" "$2"
    rm -f "$socket"
    "${command[@]}" >"$work/server.log" 2>&1 &
    server_pid=$!
    for ((tries = 0; tries < 200; tries++)); do
        # One request shows that it listens, which the socket alone does not.
        if [ -S "$socket" ] && "$BENCH" bench "$uri" --ops 1 --qd 1 >/dev/null 2>&1; then
            return 0
        fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.05
    done
    say "$1 does not serve $2: $(tail -n 3 "$work/server.log")"
    stop_server
    return 1
}

fresh_image() { # FORMAT FILE
    rm -f "$2"
    if [ "$1" = raw ]; then
        truncate -s 64M "$2"
    else
        qemu-img create -q -f vpc -o subformat=dynamic,force_size=on "$2" 64M
    fi
}

# returns_what_was_written SERVER FORMAT
returns_what_was_written() {
    # orlop takes the format from the name.
    local depth image=$work/verify.${2/vpc/vhd}
    fresh_image "$2" "$image" && start_server "$1" "$image" || return 1
    for depth in 1 16 64; do
        if ! "$BENCH" bench "$uri" --rw randrw --verify --yes --ops 4000 --qd "$depth" \
            --size 48M >"$work/verify.log" 2>&1; then
            say "$1 ($2) failed verification at depth $depth:"
            tail -n 3 "$work/verify.log" >&2
            stop_server
            return 1
        fi
    done
    stop_server
}

content_sum() { # SERVER IMAGE
    local sum
    start_server "$1" "$2" || return 1
    sum=$(nbdcopy "$uri" - 2>"$work/copy.log" | sha256sum) || sum=''
    stop_server
    [ -n "$sum" ] && echo "${sum%% *}"
}

declare -A trusted=() format_of=([orlop]='raw vpc' [nbdkit]=raw [qemu-raw]=raw [qemu-vpc]=vpc)
cases=()

verify_servers() {
    local server format
    for server in "${servers[@]}"; do
        for format in ${format_of[$server]}; do
            if returns_what_was_written "$server" "$format"; then
                say "verified: $server ($format)"
                trusted[$server/$format]=yes
            else
                echo "FAILED: $server ($format) does not return what was written; no rates"
            fi
        done
    done
}

# add_case JOB SERVER IMAGE FORMAT LABEL: if the server may be trusted and reads the image rightly.
add_case() {
    local sum
    [ -n "${trusted[$2/$4]:-}" ] || return 0
    if have nbdcopy; then
        if ! sum=$(content_sum "$2" "$3"); then
            echo "FAILED: $2 cannot be read with $3; no rates"
            return 0
        fi
        echo "content: $1 $5 sha256 $sum"
        if [ "$sum" != "${expected_sum:=$sum}" ]; then
            echo "FAILED: $2 reads $3 differently from the others; no rates"
            return 0
        fi
    fi
    cases+=("$1|$2|$3|$5")
}

plan_cases() {
    local server expected_sum
    # What the raw file holds, by no server's word. A chain has only its twin to be held against.
    expected_sum=$(sha256sum <"$raw") && expected_sum=${expected_sum%% *}
    for server in "${servers[@]}"; do
        [ "$server" = qemu-vpc ] || add_case raw-randread "$server" "$raw" raw "$server"
    done
    for server in orlop qemu-vpc; do
        add_case vhd-randread "$server" "$vhd" vpc "$server"
    done
    add_case vhd-randread orlop "$raw" raw orlop-on-raw
    if [ -n "$chain" ] && [ -n "$single" ]; then
        expected_sum=''
        add_case chain-randread orlop "$chain" vpc orlop-on-chain
        add_case chain-randread orlop "$single" vpc orlop-on-single
    else
        say "chain jobs are left out: give -c and -s"
    fi
    # Overwrites go to copies: the images given to us are only read.
    for server in orlop qemu-vpc; do
        [ -z "${trusted[$server/vpc]:-}" ] && continue
        cp --sparse=always "$vhd" "$work/overwrite-$server.vhd" || die "no room for a copy"
        cases+=("vhd-randwrite|$server|$work/overwrite-$server.vhd|$server")
    done
}

# run_case CASE ROUND
run_case() {
    local job server image label load
    IFS='|' read -r job server image label <<<"$1"
    case $job in
        *-randwrite) load=(--rw randwrite --yes) ;;
        *) load=(--rw randread) ;;
    esac
    start_server "$server" "$image" || return 1
    # Everything into the page cache first, so that no server pays for the disk.
    "$BENCH" bench "$uri" --rw read --bs 1M --qd 8 --time 1 >/dev/null 2>&1
    "$BENCH" bench "$uri" "${load[@]}" --bs 4K --qd 32 --time "$seconds" --seed "$2" --json \
        >"$out/$job.$label.$2.json" 2>"$work/bench.log" \
        || echo "FAILED: $job on $label in round $2: $(tail -n 1 "$work/bench.log")"
    stop_server
}

shuffled() { # ROUND
    printf '%s\n' "${cases[@]}" | python3 -c '
import random, sys
lines = sys.stdin.read().splitlines()
random.Random(sys.argv[1]).shuffle(lines)
print("\n".join(lines))' "$seed.$1"
}

print_results() {
    python3 - "$out" "$seed" <<'PYTHON'
import collections, json, os, random, statistics, sys

folder, seed = sys.argv[1], sys.argv[2]
runs = collections.defaultdict(lambda: collections.defaultdict(list))
for name in sorted(os.listdir(folder)):
    job, label, _round, kind = name.split(".")
    try:
        with open(os.path.join(folder, name)) as file:
            report = json.load(file)
    except ValueError:
        continue
    if report["fault_count"] == 0:
        runs[job][label].append(report)

dice = random.Random(seed)

def summary(values):
    """The median and its 95 % bootstrap interval."""
    medians = sorted(
        statistics.median(dice.choices(values, k=len(values))) for _ in range(2000)
    )
    return statistics.median(values), medians[49], medians[1949]

def ratio(ours, theirs):
    apart = ours[1] > theirs[2] or ours[2] < theirs[1]
    return f"{ours[0] / theirs[0]:6.2f}" if apart and theirs[0] else "  (same)"

def cpu(report):
    return report["cpu"]["server_us_per_op"] or 0.0

for job, labels in sorted(runs.items()):
    print(f"\n{job} (4 KiB, qd 32, 1 connection)")
    print(f"  {'':16} {'runs':>4} {'kiops':>8} {'95 %':>17} {'cpu us/op':>10} {'95 %':>15}"
          f" {'p99 us':>9} {'client':>7}")
    rates, costs = {}, {}
    for label, reports in labels.items():
        rate = summary([report["total"]["iops"] / 1000 for report in reports])
        cost = summary([cpu(report) for report in reports])
        p99 = statistics.median(report["total"]["latency_us"]["p99"] for report in reports)
        own = statistics.median(report["cpu"]["client_us_per_op"] for report in reports)
        rates[label], costs[label] = rate, cost
        print(f"  {label:16} {len(reports):4} {rate[0]:8.1f} {rate[1]:8.1f}-{rate[2]:8.1f}"
              f" {cost[0]:10.2f} {cost[1]:7.2f}-{cost[2]:7.2f} {p99:9.1f} {own:7.2f}")
    ours = next((label for label in ("orlop", "orlop-on-chain") if label in rates), None)
    for label in rates:
        if ours and label != ours:
            print(f"  {ours} / {label}: throughput {ratio(rates[ours], rates[label])},"
                  f" server cpu {ratio(costs[ours], costs[label])}")
PYTHON
}

have python3 || die "python3 is missing"
"$BENCH" bench --help >/dev/null 2>&1 || die "'$BENCH bench' does not run; set ORLOP or BENCH"
have qemu-img || die "qemu-img is missing; it makes the images that servers are verified with"
servers=()
if "$ORLOP" serve --help >/dev/null 2>&1; then
    servers+=(orlop)
else
    say "LEFT OUT: '$ORLOP serve' does not run"
fi
if have nbdkit; then servers+=(nbdkit); else say "LEFT OUT: nbdkit is missing"; fi
if have qemu-nbd; then
    servers+=(qemu-raw qemu-vpc)
else
    say "LEFT OUT: qemu-nbd is missing"
fi
[ "${#servers[@]}" -gt 0 ] || die "no server is left to compare"

if [ -z "$raw" ]; then
    raw=$work/made.raw
    head -c 256M /dev/urandom >"$raw" || die "no room for a raw image"
fi
if [ -z "$vhd" ]; then
    vhd=$work/made.vhd
    qemu-img convert -f raw -O vpc -o subformat=dynamic,force_size=on "$raw" "$vhd" \
        || die "cannot make a VHD from $raw"
fi

echo "# machine: $(uname -sr), $(nproc) processors; rounds $rounds x $seconds s; seed $seed"
for server in "${servers[@]}"; do
    server_command "$server" IMAGE
    version=$("${command[0]}" --version 2>&1 | head -n 1)
    echo "# $server: ${command[*]} ($version)"
done
verify_servers
plan_cases
[ "${#cases[@]}" -gt 0 ] || die "nothing is left to run"
for ((round = 1; round <= rounds; round++)); do
    say "round $round of $rounds"
    while read -r case; do
        run_case "$case" "$round" </dev/null
    done < <(shuffled "$round")
done
print_results
