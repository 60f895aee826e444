# What tests and demo need from the machine: PostgreSQL 15, the node's locale,
# a compiler. Sourced. Installs only what is missing, says what it installs.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command as root, or says what has to be run.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        fail "this needs root once (or sudo without a password): $*"
    fi
}

# install PACKAGE...: by apt, from lists that are brought up to date first.
install() {
    command -v apt-get >/dev/null ||
        fail "missing: $*. There is no apt-get here; install them by hand and start again"
    say "installing $*"
    local options=(-qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    as_root apt-get "${options[@]}" update >/dev/null ||
        say "apt-get update failed; trying with the lists that are there"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null ||
        fail "apt-get can't install $*; PostgreSQL 15 is one of Debian 12's packages"
}

has_postgres() {
    [ -x /usr/lib/postgresql/15/bin/initdb ] || [ -x /usr/pgsql-15/bin/initdb ] ||
        { command -v initdb && initdb --version | grep -q ' 15\.'; } >/dev/null 2>&1
}

need_postgres() {
    if ! has_postgres; then
        # Installing must not start a server of its own on port 5432.
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            as_root mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' |
                as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
        fi
        install postgresql-15
    fi
    if ! locale -a 2>/dev/null | grep -qix 'en_US\.utf-\?8'; then
        [ -e /usr/share/i18n/locales/en_US ] && command -v localedef >/dev/null ||
            install locales
        say "making the locale en_US.UTF-8"
        as_root localedef -i en_US -f UTF-8 en_US.UTF-8
    fi
}

need_compiler() {
    # rustup's own place, where a shell that is no login shell does not look.
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    command -v cc >/dev/null || install gcc libc6-dev
    command -v cargo >/dev/null ||
        fail "missing: cargo. Install Rust 1.95 or newer (rustup does it)"
}

# promtool alone, out of Debian's package prometheus: the package itself would
# start a server. What cannot be had is left out, and the test says so.
need_promtool() {
    local tools=$PWD/target/tools
    PATH="$tools/usr/bin:$PATH"
    command -v promtool >/dev/null && return
    command -v apt-get >/dev/null || return 0
    say "fetching promtool"
    mkdir -p "$tools"
    (cd "$tools" && apt-get -qq download prometheus >/dev/null 2>&1 &&
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool) ||
        say "promtool cannot be had: the rules of deploy/prometheus stay unchecked"
    rm -f "$tools"/prometheus_*.deb
}
