# What tests/core/peers.rs needs besides the official clients. Sourced by scripts/test.

npm_packages cli tests/peers/cli/package.json 'the official command line'
python_packages contract tests/peers/contract/requirements.txt "the checker of the API's contract"
if ! fresh tests/peers/rust/Cargo.toml "$tools/rust"; then
  say "building the official client for Rust, with its tests, in $tools/rust"
  rm -rf "$tools/rust" && mkdir "$tools/rust"
  cp tests/peers/rust/Cargo.toml "$tools/rust/" && : >"$tools/rust/lib.rs"
  manifest=$(cargo metadata --quiet --format-version 1 --manifest-path "$tools/rust/Cargo.toml" |
    python3 -c 'import json, sys; print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "apify-client"))') ||
    fail "cargo could not fetch the package of tests/peers/rust/Cargo.toml"
  cp -r "$(dirname "$manifest")" "$tools/rust/source"
  # Its lock file names versions that may be gone; and it is no part of a workspace around it.
  rm -f "$tools/rust/source/Cargo.lock" && printf '\n[workspace]\n' >>"$tools/rust/source/Cargo.toml"
  built=$(cargo test --quiet --no-run --manifest-path "$tools/rust/source/Cargo.toml" --target-dir "$tools/rust/target" \
    --no-default-features --features rustls --test key_value_store --message-format json |
    python3 -c 'import json, sys; print(*(m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")))') ||
    fail "the tests of the official client for Rust could not be built"
  cp "$built" "$tools/rust/key_value_store"
  rm -rf "$tools/rust/target"
  cp tests/peers/rust/Cargo.toml "$tools/rust/done"
fi
