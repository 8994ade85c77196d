# Get the own certificate, with exactly these names: Nomad's template cannot make a key, so OpenBao makes it too.
path "mesh/issue/edge" {
  capabilities = ["update"]

  # Others, such as not_after, would override the longest validity of the role.
  allowed_parameters = {
    "common_name" = ["edge.mesh"]
    "alt_names"   = ["localhost"]
    "ip_sans"     = ["127.0.0.1"]
    "uri_sans"    = []
  }
}
