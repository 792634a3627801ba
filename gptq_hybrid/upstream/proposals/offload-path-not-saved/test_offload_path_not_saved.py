# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import json

from gptqmodel.quantization import QuantizeConfig


def test_saved_config_does_not_name_a_folder_of_the_machine_it_was_made_on(tmp_path):
    config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=True)
    config.save_pretrained(str(tmp_path))

    saved = (tmp_path / "quantize_config.json").read_text()

    assert config.offload_to_disk_path not in saved
    assert "offload_to_disk_path" not in json.loads(saved)["meta"]


def test_loaded_config_gets_a_folder_of_its_own(tmp_path):
    config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=True)
    config.save_pretrained(str(tmp_path))

    loaded = QuantizeConfig.from_pretrained(str(tmp_path))

    assert loaded.offload_to_disk_path
    assert loaded.offload_to_disk_path != config.offload_to_disk_path


def test_other_settings_are_still_saved():
    meta = QuantizeConfig(bits=4, group_size=128, offload_to_disk=True).to_dict()["meta"]

    assert meta["offload_to_disk"] is True
    assert "pack_impl" in meta
