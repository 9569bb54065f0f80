#!/bin/sh
# Secrets by file: NAME_FILE names a file that holds NAME, as in other images. (GAITID_ENCRYPTION_KEYS_FILE is the service's own.)
set -eu
for name in GAITID_DATABASE_URL GAITID_WALK_KEYS_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then
    value=$(cat "$file")  # apart from export, which would hide that it failed
    export "$name=$value"
    unset "${name}_FILE"
  fi
done
exec gaitid "$@"
