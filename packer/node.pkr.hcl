# The machine image of a cluster node: Nomad, Consul and OpenBao as services, configured by the files of this repo.
# The address, the peers and the keys of a node are not in the image; they arrive at first boot as *.d/30-node.hcl.

packer {
  required_version = ">= 1.11"

  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1"
    }
  }
}

variable "base_image" {
  type        = string
  description = "path or URL of a Debian 12 or 13 cloud image (qcow2)"
}

variable "base_checksum" {
  type        = string
  description = "its checksum, as sha512:…"
}

variable "programs" {
  type        = string
  description = "folder that holds the programs nomad, consul and bao"
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "tcg where the machine has no KVM: slow, but it works"
}

source "qemu" "node" {
  iso_url          = var.base_image
  iso_checksum     = var.base_checksum
  disk_image       = true
  disk_size        = "8G"
  format           = "qcow2"
  accelerator      = var.accelerator
  headless         = true
  output_directory = "output"
  vm_name          = "waypost-node.qcow2"
  ssh_username     = "packer"
  ssh_timeout      = "20m"
  shutdown_command = "sudo cloud-init clean --logs && sudo shutdown -P now"

  cd_label = "cidata"
  cd_content = {
    "meta-data" = ""
    "user-data" = <<-YAML
      #cloud-config
      users:
        - name: packer
          sudo: ALL=(ALL) NOPASSWD:ALL
          shell: /bin/bash
          ssh_authorized_keys: ["${build.SSHPublicKey}"]
    YAML
  }
}

build {
  sources = ["source.qemu.node"]

  provisioner "shell" {
    inline = ["mkdir -p /tmp/node/programs /tmp/node/files"]
  }

  provisioner "file" {
    sources     = ["${var.programs}/nomad", "${var.programs}/consul", "${var.programs}/bao"]
    destination = "/tmp/node/programs/"
  }

  provisioner "file" {
    source      = "${path.root}/files/"
    destination = "/tmp/node/files/"
  }

  provisioner "file" {
    source      = "${path.root}/../nomad/agent.hcl"
    destination = "/tmp/node/nomad.hcl"
  }

  provisioner "file" {
    source      = "${path.root}/../consul/agent.hcl"
    destination = "/tmp/node/consul.hcl"
  }

  provisioner "file" {
    source      = "${path.root}/../vault/server.hcl"
    destination = "/tmp/node/vault.hcl"
  }

  provisioner "shell" {
    execute_command = "sudo sh '{{ .Path }}'"
    script          = "${path.root}/install.sh"
  }
}
