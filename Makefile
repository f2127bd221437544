# The two commands of the README, and the edit loop. Packages are never selected with -p: cargo unifies
# features over what it builds, and another selection would compile CubeCL again.

.PHONY: cost test check bench chat fuzz licences setup

# The main job: cost against context on whatever device is there.
cost: setup
	cargo bench --bench cost_vs_context

# Every test.
test: setup
	cargo test --release --workspace

# The gate of one kernel: make check K=indexer
check: setup
	cargo run --release --bin dsa -- check $(K)

# One bench per kernel and stage.
bench: setup
	cargo bench --bench kernels

# A conversation with a small model of made-up weights, which is made first if it is not there.
chat: setup
	@mkdir -p target
	@test -e target/tiny || cargo run --release --bin dsa -- make-tiny target/tiny
	cargo run --release --bin dsa -- generate --ckpt target/tiny --interactive --stats

# Many more mutants of every kind of file than the tests take.
fuzz: setup
	DSA_MUTANTS=100000 cargo test --release --workspace --test suite -- mutants

# LICENSES, from what the binaries are built of.
licences: setup
	DSA_WRITE_LICENSES=1 cargo test --release --workspace --test suite -- licences

setup:
	@bash setup/setup.sh
