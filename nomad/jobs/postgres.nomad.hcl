# Postgres for all services: each has a database, a schema, and two database roles. The owner changes the schema, the
# runtime role reads and writes rows. Its files survive the job.
# Only the database engine of Vault has a password, which a deploy gives it; it creates short-lived logins for the services.

variable "postgres_bin" { type = string }
variable "postgres_dir" { type = string }
variable "postgres_port" { type = number }
# The services that own a database, separated by spaces: user_service order_service
variable "databases" { type = string }

job "postgres" {
  type = "service"

  update {
    min_healthy_time = "1s"
    healthy_deadline = "120s"
  }

  group "postgres" {
    network {
      port "postgres" { static = var.postgres_port }
    }

    # The only copy of the data is on this node, so restarts in place have no limit.
    restart {
      interval = "1m"
      attempts = 60
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name     = "postgres"
      port     = "postgres"
      provider = "consul"

      # The kernel accepts connections for a Postgres that is stopped or recovers, so the check asks Postgres itself. Nomad
      # runs the check: without Nomad it fails after half a minute, and services keep the last known address.
      check {
        type     = "script"
        task     = "postgres"
        command  = "${var.postgres_bin}/pg_isready"
        args     = ["-q", "-t", "1", "-h", "127.0.0.1", "-p", "${NOMAD_PORT_postgres}", "-U", "postgres", "-d", "postgres"]
        interval = "2s"
        timeout  = "10s"

        # A Postgres that starts or recovers exits with 1, which is a warning here; a restart would only begin again.
        check_restart {
          limit           = 46
          grace           = "60s"
          ignore_warnings = true
        }
      }
    }

    task "postgres" {
      driver       = "raw_exec"
      kill_signal  = "SIGINT" # fast shutdown: roll back what is open, write a checkpoint, end
      kill_timeout = "20s"

      config {
        command = "/bin/sh"
        args    = ["local/postgres.sh"]
      }

      env {
        PG_BIN  = var.postgres_bin
        PG_DIR  = var.postgres_dir
        PG_PORT = "${NOMAD_PORT_postgres}"
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      # Postgres refuses to run as root, so root starts it as `nobody`. A mount namespace shows it the two folders it
      # needs, because `nobody` may not be allowed to read the path to them (below /root it is not).
      template {
        destination = "local/postgres.sh"
        data        = <<-SH
          set -eu
          export RUN="$(cat local/run.sh)" OWNER="$(id -un)"
          if [ "$(id -u)" != 0 ]; then exec sh -c "$RUN"; fi
          mkdir -p "$PG_DIR"
          chown -R 65534:65534 "$PG_DIR"
          drop="setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all"
          if unshare --mount true 2>/dev/null; then
            exec unshare --mount --propagation private sh -eu -c '
              mount --bind "$PG_DIR" /mnt
              mount --bind "$PG_BIN/../../.." /opt
              PG_DIR=/mnt PG_BIN="/opt/$(basename "$(realpath "$PG_BIN/../..")")/$(basename "$(realpath "$PG_BIN/..")")/bin" exec '"$drop"' sh -c "$RUN"'
          fi
          exec $drop sh -c "$RUN"
        SH
      }

      template {
        destination = "local/run.sh"
        data        = <<-SH
          set -eu
          umask 077
          cd "$PG_DIR"
          mkdir -p run
          if [ ! -f data/PG_VERSION ]; then
            rm -rf data.new data
            "$PG_BIN/initdb" --pgdata=data.new --username=postgres --auth-local=peer --auth-host=scram-sha-256 \
              --encoding=UTF8 --locale=C --data-checksums >/dev/null
            sed -i 's/^local.*peer$/& map=owner/' data.new/pg_hba.conf
            mv data.new data
          fi
          # Only the owner of the stack is superuser, through the socket; even the user of the Postgres process is not.
          printf 'owner "%s" postgres\n' "$OWNER" > data/pg_ident.conf
          exec "$PG_BIN/postgres" -D data \
            -c listen_addresses=127.0.0.1 -c port="$PG_PORT" -c unix_socket_directories="$PG_DIR/run" \
            -c client_connection_check_interval=1s -c max_connections=100 -c shared_buffers=64MB -c max_wal_size=256MB -c log_min_messages=warning \
            -c cluster_name=waypost -c log_error_verbosity=terse
        SH
      }

      resources {
        cpu    = 300
        memory = 512
      }
    }

    # Creates what each service needs before its first login; changes nothing that exists.
    task "databases" {
      driver = "raw_exec"

      lifecycle {
        hook = "poststart"
      }

      config {
        command = "/bin/sh"
        args    = ["local/databases.sh"]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      env {
        PG_BIN    = var.postgres_bin
        PG_DIR    = var.postgres_dir
        PG_PORT   = "${NOMAD_PORT_postgres}"
        DATABASES = var.databases
      }

      template {
        destination = "local/databases.sh"
        data        = <<-SH
          set -eu
          run() { "$PG_BIN/psql" -qX -v ON_ERROR_STOP=1 -h "$PG_DIR/run" -p "$PG_PORT" -U postgres "$@"; }
          for _ in $(seq 100); do "$PG_BIN/pg_isready" -q -U postgres -h "$PG_DIR/run" -p "$PG_PORT" && break; sleep 0.1; done
          once() { [ "$(run -d postgres -Atc "$1")" = 1 ] || run -d "$3" -c "$2"; }
          once "SELECT 1 FROM pg_roles WHERE rolname = 'vault'" "CREATE ROLE vault LOGIN CREATEROLE" postgres
          run -d postgres -c "GRANT pg_signal_backend TO vault"
          for name in $DATABASES; do
            runtime="$${name}_runtime"
            for role in "$name" "$runtime"; do
              once "SELECT 1 FROM pg_roles WHERE rolname = '$role'" "CREATE ROLE $role NOLOGIN" postgres
              run -d postgres -c "GRANT $role TO vault WITH ADMIN OPTION, INHERIT FALSE, SET FALSE"
            done
            once "SELECT 1 FROM pg_database WHERE datname = '$name'" "CREATE DATABASE $name OWNER $name" postgres
            run -d postgres -c "REVOKE ALL ON DATABASE $name FROM PUBLIC" \
              -c "GRANT CONNECT, TEMPORARY ON DATABASE $name TO $runtime"
            run -d "$name" -c "SET client_min_messages = warning" \
              -c "CREATE SCHEMA IF NOT EXISTS $name AUTHORIZATION $name" -c "REVOKE ALL ON SCHEMA public FROM PUBLIC" \
              -c "GRANT USAGE ON SCHEMA $name TO $runtime"
            # For tables of later migrations; migrations restrict single tables.
            later="ALTER DEFAULT PRIVILEGES FOR ROLE $name IN SCHEMA $name GRANT"
            run -d "$name" -c "$later SELECT, INSERT, UPDATE, DELETE ON TABLES TO $runtime" \
              -c "$later USAGE ON SEQUENCES TO $runtime"
          done
        SH
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
