# What Consul needs as the certificate authority of the mesh: create a root certificate, have its intermediate CA signed,
# make that the default issuer, and sign certificates with a role of its own. There are two mounts for the roots before
# and after a rotation, in which the old root signs the new one: OpenBao demands sudo for that.
path "mesh-root/root/generate/internal" {
  capabilities = ["update"]
}

path "mesh-root/root/sign-intermediate" {
  capabilities = ["update"]
}

path "mesh-root/root/sign-self-issued" {
  capabilities = ["sudo", "update"]
}

path "mesh-root-2/root/generate/internal" {
  capabilities = ["update"]
}

path "mesh-root-2/root/sign-intermediate" {
  capabilities = ["update"]
}

path "mesh-root-2/root/sign-self-issued" {
  capabilities = ["sudo", "update"]
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
