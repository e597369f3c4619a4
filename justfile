# The tasks of this repository. `just` lists them; each is one command that also works without `just`.

# Lists the tasks.
default:
    @just --list

# The dashboard on a local cluster of three node processes.
run *ARGS:
    cargo run --release -- {{ARGS}}

# Everything that a change must pass.
ci:
    bash .ci/run

# The tests; with a filter: `just test replica`.
test *FILTER:
    cargo test --workspace --locked {{FILTER}}

# The simulator on a range of seeds: `just seeds 0..100000`.
seeds RANGE:
    SIM_SEEDS={{RANGE}} cargo test -p kv-core --test sim range -- --nocapture

# One seed with its trace: `just seed 4711`.
seed SEED:
    SIM_SEED={{SEED}} cargo test -p kv-core --test sim replay -- --nocapture

# Accepts the screens that the tests have drawn anew, after they were looked at in the `.snap.new` files.
accept-screens:
    INSTA_UPDATE=always cargo test -p kv-tui --lib dashboard

# The images in the documents, drawn again.
pictures:
    cargo run -p kv-tui --example overview
    cargo run -p kv-tui --example migration

# Five nodes under kills, freezes, cuts, greedy clients and a full disk (root on Linux with iproute2).
soak MINUTES="30":
    cargo bench -p kv-node --bench soak -- --minutes {{MINUTES}}

# What clients of a consistent keyspace are told under faults of all kinds, judged (needs the same).
histories MINUTES="30":
    cargo bench -p kv-node --bench histories -- --minutes {{MINUTES}}

# One benchmark: `just bench kv-core storage`.
bench PACKAGE NAME *ARGS:
    cargo bench -p {{PACKAGE}} --bench {{NAME}} -- {{ARGS}}

# Formats the code, and lets the linter say what it would refuse.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets --locked -- -D warnings

# One fuzz target for some seconds (nightly toolchain, cargo-fuzz, a C++ compiler): `just fuzz peer_message`.
fuzz TARGET SECONDS="300":
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}
