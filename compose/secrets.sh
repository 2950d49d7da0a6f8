#!/bin/sh
# Makes the secrets of compose.yaml, once, in .everbus/compose/ (which git ignores).
# What is there already stays: to renew a secret, remove its file and run this again.
# Run it after the image is built, or set EVERBUS to an installed everbus command.
set -eu
everbus=${EVERBUS:-docker run --rm --network none everbus:0.1.0}
folder=${EVERBUS_SECRETS:-$(dirname "$0")/../.everbus/compose}
# Not for everbus, which refuses names that it does not know.
unset EVERBUS EVERBUS_SECRETS

umask 022
mkdir -p "$folder"
# The containers' users have numbers of their own, so each file is readable to all of
# them; on this machine the folder keeps everybody else out.
chmod 700 "$folder"

fresh() {
    od -An -N 32 -t x1 /dev/urandom | tr -d ' \n'
}

# keep NAME VALUE: unless it is there.
keep() {
    [ -s "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"
}

told() {
    cat "$folder/$1"
}

for name in jwt_secret grant_key s3_secret_key edge_s3_secret_key \
    mongo_root_password mongo_password mongo_edge_password mongo_keyfile \
    operator_password; do
    keep "$name" "$(fresh)"
done
for role in manager archiver edge; do
    keep "${role}_password" "$(fresh)"
    keep "${role}_redis_url" "redis://everbus-$role:$(told "${role}_password")@bus:6379"
done
keep operator_redis_url "redis://operator:$(told operator_password)@127.0.0.1:6379"

members=mongo-1:27017,mongo-2:27017,mongo-3:27017
options='authSource=admin&replicaSet=everbus'
keep mongo_url "mongodb://everbus:$(told mongo_password)@$members/?$options"
keep edge_mongo_url "mongodb://everbus-edge:$(told mongo_edge_password)@$members/?$options"

identity() {
    printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], ' \
        "$1" "$1" "$(told "$2")"
    printf '"actions": [%s]}' "$3"
}
writing=$(identity everbus s3_secret_key '"Admin", "Read", "Write", "List"')
reading=$(identity everbus-edge edge_s3_secret_key '"Read", "List"')
keep s3_identities "{\"identities\": [$writing, $reading]}"

# The server keeps digests only. `default` is off, `probe` can only ping, and the rules
# of the roles are those that everbus itself prints.
if [ ! -s "$folder/users_acl" ]; then
    digest() {
        printf '%s' "$(told "$1")" | sha256sum | cut -d ' ' -f 1
    }
    {
        echo 'user default off'
        echo 'user probe on nopass -@all +ping'
        echo "user operator on #$(digest operator_password) ~* &* +@all"
        for role in manager archiver edge; do
            rules=$($everbus acl --role "$role")
            echo "user everbus-$role on #$(digest "${role}_password") ${rules#* }"
        done
    } >"$folder/users_acl.new"
    mv "$folder/users_acl.new" "$folder/users_acl"
fi
echo "secrets are in $folder"
