#!/bin/sh
# Creates the secrets that the services share. Existing secrets are kept.
# Each folder is a volume; a service mounts only the volumes that it has to read.
set -eu
cd "${1:-/secrets}"

random() {
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

write() { # atomically; readable for the users of other containers
    cat >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
}

[ -s sleb/sleb_redis_url ] || echo "redis://sleb:$(random)@valkey:6379" | write sleb/sleb_redis_url
[ -s grafana/admin_password ] || random | write grafana/admin_password

# Valkey gets only the hash. It replays its append-only file as the default user, so that user needs all
# commands; otherwise transactions are lost. The user of health checks has no password.
password=$(sed 's#^redis://sleb:\(.*\)@.*#\1#' sleb/sleb_redis_url)
hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
write valkey/users.acl <<END
user default on #$hash allkeys allchannels +@all
user health on nopass resetkeys resetchannels -@all +ping
user sleb on #$hash allkeys allchannels +@all
END
