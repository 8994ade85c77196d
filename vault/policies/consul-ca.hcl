# What Consul needs as the certificate authority of the mesh: create the root certificate once, have its intermediate CA
# signed, make that the default issuer, and sign certificates with a role of its own.
path "mesh-root/root/generate/internal" {
  capabilities = ["update"]
}

path "mesh-root/root/sign-intermediate" {
  capabilities = ["update"]
}

path "mesh/intermediate/generate/internal" {
  capabilities = ["update"]
}

path "mesh/intermediate/set-signed" {
  capabilities = ["update"]
}

path "mesh/config/issuers" {
  capabilities = ["read", "update"]
}

path "mesh/issuer/+" {
  capabilities = ["read"]
}

path "mesh/config/auto-tidy" {
  capabilities = ["update"]
}

path "mesh/roles/leaf-cert" {
  capabilities = ["update"]
}

path "mesh/sign/leaf-cert" {
  capabilities = ["update"]
}
