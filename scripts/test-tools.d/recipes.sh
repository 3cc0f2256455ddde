# What the recipes of docs/RECIPES.md need. Sourced by scripts/test.

need montage imagemagick
settle scripts/test
if ! fresh tests/recipes/requirements.txt "$tools/recipes"; then
  say "installing what the recipes use into $tools/recipes"
  rm -rf "$tools/recipes"
  python3 -m venv "$tools/recipes"
  "$tools/recipes/bin/pip" install --quiet --disable-pip-version-check -r tests/recipes/requirements.txt >&2 ||
    fail "pip could not install the packages of tests/recipes/requirements.txt"
  cp tests/recipes/requirements.txt "$tools/recipes/done"
fi
