# What the scripts beside this file need on the machine. Sourced by them, not run.
#
# need PROGRAM PACKAGE...   notes the Debian packages that bring a program, if it is missing
# settle WHAT               installs what was noted, where this is possible, else says it and ends

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MISSING_PROGRAMS=()
MISSING_PACKAGES=()

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $1"
  shift
  for hint in "$@"; do say "hint: $hint"; done
  exit 1
}

need() {
  local program=$1
  shift
  command -v "$program" >/dev/null 2>&1 && return
  [[ " ${MISSING_PROGRAMS[*]-} " == *" $program "* ]] && return
  MISSING_PROGRAMS+=("$program")
  MISSING_PACKAGES+=("$@")
}

settle() {
  if [ ${#MISSING_PROGRAMS[@]} -gt 0 ]; then
    local packages
    packages=$(printf '%s\n' "${MISSING_PACKAGES[@]}" | sort -u | tr '\n' ' ')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
      say "installing with apt: $packages"
      # shellcheck disable=SC2086 # one word for each package
      if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; } >&2; then
        fail "apt could not install what $1 needs: $packages"
      fi
    else
      fail "missing for $1: ${MISSING_PROGRAMS[*]}" "sudo apt-get install $packages"
    fi
    local still=()
    for program in "${MISSING_PROGRAMS[@]}"; do
      command -v "$program" >/dev/null 2>&1 || still+=("$program")
    done
    [ ${#still[@]} = 0 ] || fail "still missing for $1: ${still[*]}"
    MISSING_PROGRAMS=()
    MISSING_PACKAGES=()
  fi
}

# Rust, new enough, and what building takes. Debian's cargo is mostly too old to be installed here.
need_rust() {
  local wanted have
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  [ -n "$wanted" ] || fail "Cargo.toml names no rust-version"
  if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  command -v cargo >/dev/null 2>&1 ||
    fail "cargo is missing: kvfs is built with Rust $wanted or newer" "install it as https://rustup.rs says"
  have=$(cargo --version | cut -d ' ' -f 2)
  [ "$(printf '%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1)" = "$wanted" ] ||
    fail "Rust $have is too old: kvfs is built with $wanted or newer" "rustup update stable"
  need cc gcc libc6-dev
}

need_fuse() {
  [ -e /dev/fuse ] ||
    fail "there is no /dev/fuse on this machine: $1 mounts for real" \
      "on a machine of your own: sudo modprobe fuse" \
      "in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN"
  # Root mounts by itself.
  [ "$(id -u)" = 0 ] || need fusermount3 fuse3
}
