# The daily verbs. `just` alone lists them; each is one cargo command that works without just.

default:
    @just --list

# Build everything once, in the profile that tests and the demo share.
build:
    cargo build --locked --workspace

# All tests.
test:
    cargo test --locked --workspace

# The talk, step by step, with verdicts.
demo:
    cargo run --locked -p e2e -- demo

# A mesh to play with, until Ctrl-C.
up:
    cargo run --locked -p e2e -- up

# What CI asks besides tests.
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# Rewrite golden files after an intended change; review the diff.
golden:
    UPDATE_GOLDEN=1 cargo test --locked --workspace

# Binaries as they ship.
dist:
    cargo build --locked --profile dist -p proxy -p pilot -p citadel -p mixer -p injector
