# What tests/it/peers.rs needs besides the official clients. Sourced by scripts/test.

if ! fresh tests/peers/cli/package.json "$tools/cli"; then
  say "installing the official command line into $tools/cli"
  rm -rf "$tools/cli" && mkdir "$tools/cli"
  cp tests/peers/cli/package.json "$tools/cli/"
  npm install --prefix "$tools/cli" --ignore-scripts --omit=optional --no-audit --no-fund --no-package-lock --loglevel=error >&2 ||
    fail "npm could not install the packages of tests/peers/cli/package.json"
  cp tests/peers/cli/package.json "$tools/cli/done"
fi
if ! fresh tests/peers/contract/requirements.txt "$tools/contract"; then
  say "installing the checker of the API's contract into $tools/contract"
  rm -rf "$tools/contract"
  python3 -m venv "$tools/contract"
  "$tools/contract/bin/pip" install --quiet --disable-pip-version-check -r tests/peers/contract/requirements.txt >&2 ||
    fail "pip could not install the packages of tests/peers/contract/requirements.txt"
  cp tests/peers/contract/requirements.txt "$tools/contract/done"
fi
