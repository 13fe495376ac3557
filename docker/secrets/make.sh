#!/bin/sh
# Makes what the services share and nobody else may know: on the first start, and then kept.
# Every folder is a volume that only those mount who have to read it.
set -eu
cd "${1:-/secrets}"

random() {
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

write() { # whole or not at all; the readers are other users
    cat >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
}

[ -s sleb/sleb_redis_url ] || echo "redis://sleb:$(random)@valkey:6379" | write sleb/sleb_redis_url
[ -s grafana/admin_password ] || random | write grafana/admin_password

# Valkey is told the hash alone. Its file of changes is read back as the default user, who must
# therefore be allowed everything, or transactions are lost. Health has a user without a password.
password=$(sed 's#^redis://sleb:\(.*\)@.*#\1#' sleb/sleb_redis_url)
hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
write valkey/users.acl <<END
user default on #$hash allkeys allchannels +@all
user health on nopass resetkeys resetchannels -@all +ping
user sleb on #$hash allkeys allchannels +@all
END
