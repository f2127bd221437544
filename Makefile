# The two commands of the README, and the edit loop. Packages are never selected with -p: cargo unifies
# features over what it builds, and another selection would compile CubeCL again.

.PHONY: cost test check bench setup

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

setup:
	@bash setup/setup.sh
