# The implementations of S3 and of Azure's blob storage that tests run on this machine. Sourced by
# scripts/test.

if ! fresh tests/peers/storage/requirements.txt "$tools/storage"; then
  say "installing an S3 implementation for tests into $tools/storage"
  rm -rf "$tools/storage"
  python3 -m venv "$tools/storage"
  "$tools/storage/bin/pip" install --quiet --disable-pip-version-check -r tests/peers/storage/requirements.txt >&2 ||
    fail "pip could not install the packages of tests/peers/storage/requirements.txt"
  cp tests/peers/storage/requirements.txt "$tools/storage/done"
fi
if ! fresh tests/peers/azure/package.json "$tools/azure"; then
  say "installing an implementation of Azure's blob storage for tests into $tools/azure"
  rm -rf "$tools/azure" && mkdir "$tools/azure"
  cp tests/peers/azure/package.json "$tools/azure/"
  npm install --prefix "$tools/azure" --ignore-scripts --omit=optional --no-audit --no-fund --no-package-lock --loglevel=error >&2 ||
    fail "npm could not install the packages of tests/peers/azure/package.json"
  cp tests/peers/azure/package.json "$tools/azure/done"
fi
