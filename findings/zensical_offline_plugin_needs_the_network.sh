#!/usr/bin/env bash
# Surprise: the plugin of zensical for documentation that is read without a network makes every page load a script from
#   another host. Without the plugin the pages load nothing from outside.
# Why it matters here: a test holds that pages of Puna's documentation load nothing from other hosts, so the plugin is off
#   in zensical.toml, and the search of the site needs an HTTP server.
# Source: the `offline` plugin, https://zensical.org/docs/setup/building-for-offline-usage/
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zensical==0.0.73
mkdir "$folder/docs"
printf '# Hello\n' > "$folder/docs/index.md"
cd "$folder"
for plugin in "" offline; do
    printf '[project]\nsite_name = "site"\n[project.theme]\nfont = false\n' > zensical.toml
    [ -z "$plugin" ] || printf '[project.plugins.%s]\nenabled = true\n' "$plugin" >> zensical.toml
    rm -rf site
    venv/bin/zensical build > /dev/null
    scripts=$(grep -rhoE --include='*.html' 'src="?https?://[^">]+' site | sort -u || true)
    echo "zensical 0.0.73, plugin '${plugin:-none}': ${scripts:-no script from another host}"
    case "$plugin" in
        "") [ -z "$scripts" ] || { echo "the behaviour is gone"; exit 1; } ;;
        *) [ -n "$scripts" ] || { echo "the behaviour is gone"; exit 1; } ;;
    esac
done
