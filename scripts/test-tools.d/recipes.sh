# What the recipes of docs/RECIPES.md need. Sourced by scripts/test.

need montage imagemagick
settle scripts/test
python_packages recipes tests/recipes/requirements.txt 'what the recipes use'
