"""The part of the contract between services that protobuf cannot express, written by hand."""
