# What tests/mount/writing needs besides: editors and tools that write in ways of their own, and
# programs that exercise filesystems. Sourced by scripts/test.

need vim vim
need nano nano
need emacs emacs-nox
need tmux tmux
need sponge moreutils
need sqlite3 sqlite3
need unzip unzip
need zip zip
need setfattr attr
need ed ed
need patch patch
settle scripts/test

# Changes of this script or of the patch build anew.
if ! cat "${BASH_SOURCE[0]}" tests/peers/pjdfstest.patch | cmp -s - "$tools/posix/done"; then
  rm -rf "$tools/posix" && mkdir "$tools/posix"
  for package in fsx-0.3.2 pjdfstest-0.2.2; do
    say "building $package in $tools/posix"
    program=${package%-*}
    # Downloads and unpacks it; a package without a library can't be had as a dependency.
    cargo info --quiet "$program@${package##*-}" >/dev/null ||
      fail "cargo could not fetch $package"
    for source in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$package"; do
      cp -r "$source" "$tools/posix/source"
      break
    done
    # It is no part of a workspace around it.
    printf '\n[workspace]\n' >>"$tools/posix/source/Cargo.toml"
    if [ "$program" = pjdfstest ]; then
      # It makes a folder for each case, which a mount does not allow.
      patch --quiet -p0 -d "$tools/posix/source" <tests/peers/pjdfstest.patch >&2 ||
        fail "tests/peers/pjdfstest.patch does not fit $package"
    fi
    # Not optimised: that would take longer than all runs together.
    RUSTFLAGS='--cap-lints allow' cargo build --quiet --locked --manifest-path "$tools/posix/source/Cargo.toml" \
      --target-dir "$tools/posix/target" --config 'profile.dev.debug=false' >&2 ||
      fail "$package could not be built"
    mv "$tools/posix/target/debug/$program" "$tools/posix/"
    rm -rf "$tools/posix/source"
  done
  rm -rf "$tools/posix/target"
  cat "${BASH_SOURCE[0]}" tests/peers/pjdfstest.patch >"$tools/posix/done"
fi
