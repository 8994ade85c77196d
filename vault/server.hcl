# OpenBao, single node. Addresses, folders and the unseal key are in a second file, which the stack writes into its
# state folder. It initialises itself on the first start, and unseals itself on every start without a typed key.

ui            = true
log_level     = "warn"

audit "file" "main" {
  description = "Every request and answer, secrets hashed."
  options = {
    file_path = "audit.log"
  }
}

# The only password is the operator's, random and long, so it cannot be guessed. A lock after wrong passwords would only
# let anybody on loopback keep the operator out.
user_lockout "userpass" {
  disable_lockout = true
}

initialize "operator" {
  request "policy" {
    operation = "update"
    path      = "sys/policies/acl/operator"
    data = {
      policy = "path \"*\" { capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\", \"sudo\", \"patch\"] }"
    }
  }

  request "enable-userpass" {
    operation = "update"
    path      = "sys/auth/userpass"
    data = {
      type = "userpass"
    }
  }

  request "operator" {
    operation = "update"
    path      = "auth/userpass/users/operator"
    data = {
      password = {
        eval_type   = "string"
        eval_source = "file"
        path        = "operator-password"
      }
      token_policies = ["operator"]
      token_ttl      = "8h"
    }
  }
}
