BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'before');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'config','{"name": "before", "data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [2, 3, 4, 5], "base_channels": 64, "pattern": "mandelbrot", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "space": {"model.fractal_levels": {"num_stages": [1, 2], "level": [1, 2]}, "model.base_channels": {"choices": [8, 16, 24]}, "model.pattern": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}, "train.learning_rate": {"low": 0.003, "high": 0.05, "log": true, "step": null}}, "search": {"metric": "val_accuracy", "sampler": "tpe", "pruner": "successive_halving", "seed": 0, "limits": {"parameters": null, "flops": null, "memory_mib": null}}}');
INSERT INTO "study_user_attributes" VALUES(2,1,'num_trials','9');
INSERT INTO "study_user_attributes" VALUES(3,1,'coordinator','{"pid": 1, "host": "host", "since": "2026-11-22 07:00"}');
INSERT INTO "study_user_attributes" VALUES(4,1,'dataset','{"num_classes": 10, "in_channels": 1, "image_size": 8, "num_train": 1150, "num_val": 287, "num_test": 360, "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "num_broken": 0}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,1,5.72949051400810760448e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,1,2,0.783725228249849,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,1,3,8.61265450401326404517e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,1,4,8.89790903994721271708e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,1,5,9.00284831921821404598e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(6,1,6,9.04145332263336376499e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(7,1,7,9.05565530971615073596e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(8,1,8,0.906087992878769,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(9,2,1,5.48100406823620489582e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(10,2,2,7.49735278191734133557e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(11,7,1,5.74840504431419208053e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(12,7,2,7.86312507964359808099e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(13,7,3,8.64108710447463179704e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(14,7,4,8.92728333942207630258e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(15,7,5,9.03256905039991342398e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(16,7,6,9.07130149891777759485e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(17,7,7,9.08555037043373259209e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(18,7,8,9.09079223732434438254e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(19,8,1,5.91195852930750387344e-01,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'model.fractal_levels.num_stages',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(2,1,'model.fractal_levels.0',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(3,1,'model.fractal_levels.1',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(4,1,'model.base_channels',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(5,1,'model.pattern',4.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(6,1,'train.learning_rate',3.66367190080362122028e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(7,2,'model.fractal_levels.num_stages',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(8,2,'model.fractal_levels.0',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(9,2,'model.base_channels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(10,2,'model.pattern',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(11,2,'train.learning_rate',4.27921187247097337125e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(12,3,'model.fractal_levels.num_stages',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(13,3,'model.fractal_levels.0',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(14,3,'model.base_channels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(15,3,'model.pattern',3.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(16,3,'train.learning_rate',8.24870046794588633598e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(17,4,'model.fractal_levels.num_stages',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(18,4,'model.fractal_levels.0',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(19,4,'model.fractal_levels.1',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(20,4,'model.base_channels',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(21,4,'model.pattern',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(22,4,'train.learning_rate',4.72299066777293486546e-03,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(23,5,'model.fractal_levels.num_stages',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(24,5,'model.fractal_levels.0',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(25,5,'model.base_channels',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(26,5,'model.pattern',3.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(27,5,'train.learning_rate',3.16929884374496512178e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(28,6,'model.fractal_levels.num_stages',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(29,6,'model.fractal_levels.0',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(30,6,'model.fractal_levels.1',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(31,6,'model.base_channels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(32,6,'model.pattern',3.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(33,6,'train.learning_rate',2.10483204924065310514e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(34,7,'model.fractal_levels.num_stages',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(35,7,'model.fractal_levels.0',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(36,7,'model.fractal_levels.1',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(37,7,'model.base_channels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(38,7,'model.pattern',3.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(39,7,'train.learning_rate',2.10483204924065310514e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
INSERT INTO "trial_params" VALUES(40,8,'model.fractal_levels.num_stages',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(41,8,'model.fractal_levels.0',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}');
INSERT INTO "trial_params" VALUES(42,8,'model.base_channels',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [8, 16, 24]}}');
INSERT INTO "trial_params" VALUES(43,8,'model.pattern',2.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]}}');
INSERT INTO "trial_params" VALUES(44,8,'train.learning_rate',1.56225294040734895284e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.003, "high": 0.05, "log": true}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,3,'constraints:parameters','0.5');
INSERT INTO "trial_system_attributes" VALUES(2,7,'fixed_params','{"model.fractal_levels.num_stages": 2, "model.fractal_levels.0": 2, "model.fractal_levels.1": 2, "model.base_channels": 16, "model.pattern": "cantor", "train.learning_rate": 0.02104832049240653}');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [1, 2], "base_channels": 24, "pattern": "dragon_curve", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.0036636719008036212, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 0}');
INSERT INTO "trial_user_attributes" VALUES(2,1,'num_parameters','1000');
INSERT INTO "trial_user_attributes" VALUES(3,1,'flops','1000000');
INSERT INTO "trial_user_attributes" VALUES(4,1,'device','"cpu x86_64"');
INSERT INTO "trial_user_attributes" VALUES(5,1,'worker','0');
INSERT INTO "trial_user_attributes" VALUES(6,1,'environment','{"versions": {"python": "3.11.7", "fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"}, "git_commit": null}');
INSERT INTO "trial_user_attributes" VALUES(7,1,'execution','{"mode": "eager", "reason": "no GPU"}');
INSERT INTO "trial_user_attributes" VALUES(8,1,'history','[{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5729490514008108, "val_loss": 1.0, "val_accuracy": 0.5729490514008108, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.783725228249849, "val_loss": 0.5, "val_accuracy": 0.783725228249849, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 3, "train_loss": 0.3333333333333333, "train_accuracy": 0.8612654504013264, "val_loss": 0.3333333333333333, "val_accuracy": 0.8612654504013264, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 4, "train_loss": 0.25, "train_accuracy": 0.8897909039947213, "val_loss": 0.25, "val_accuracy": 0.8897909039947213, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 5, "train_loss": 0.2, "train_accuracy": 0.9002848319218214, "val_loss": 0.2, "val_accuracy": 0.9002848319218214, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 6, "train_loss": 0.16666666666666666, "train_accuracy": 0.9041453322633364, "val_loss": 0.16666666666666666, "val_accuracy": 0.9041453322633364, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 7, "train_loss": 0.14285714285714285, "train_accuracy": 0.9055655309716151, "val_loss": 0.14285714285714285, "val_accuracy": 0.9055655309716151, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 8, "train_loss": 0.125, "train_accuracy": 0.906087992878769, "val_loss": 0.125, "val_accuracy": 0.906087992878769, "learning_rate": 0.0036636719008036212, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}]');
INSERT INTO "trial_user_attributes" VALUES(9,1,'seconds','0.0327093239993701');
INSERT INTO "trial_user_attributes" VALUES(10,2,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [1], "base_channels": 16, "pattern": "sierpinski", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.042792118724709734, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 1}');
INSERT INTO "trial_user_attributes" VALUES(11,2,'num_parameters','1001');
INSERT INTO "trial_user_attributes" VALUES(12,2,'flops','1000000');
INSERT INTO "trial_user_attributes" VALUES(13,2,'device','"cpu x86_64"');
INSERT INTO "trial_user_attributes" VALUES(14,2,'worker','0');
INSERT INTO "trial_user_attributes" VALUES(15,2,'environment','{"versions": {"python": "3.11.7", "fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"}, "git_commit": null}');
INSERT INTO "trial_user_attributes" VALUES(16,2,'execution','{"mode": "eager", "reason": "no GPU"}');
INSERT INTO "trial_user_attributes" VALUES(17,2,'history','[{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5481004068236205, "val_loss": 1.0, "val_accuracy": 0.5481004068236205, "learning_rate": 0.042792118724709734, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.7497352781917341, "val_loss": 0.5, "val_accuracy": 0.7497352781917341, "learning_rate": 0.042792118724709734, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}]');
INSERT INTO "trial_user_attributes" VALUES(18,2,'seconds','0.00022643500051344745');
INSERT INTO "trial_user_attributes" VALUES(19,3,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [2], "base_channels": 16, "pattern": "cantor", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.008248700467945886, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 2}');
INSERT INTO "trial_user_attributes" VALUES(20,3,'failure','{"kind": "over_limits", "message": "too large"}');
INSERT INTO "trial_user_attributes" VALUES(21,4,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [2, 1], "base_channels": 24, "pattern": "julia", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.004722990667772935, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 3}');
INSERT INTO "trial_user_attributes" VALUES(22,4,'duplicate_of','0');
INSERT INTO "trial_user_attributes" VALUES(23,4,'flops','1000000');
INSERT INTO "trial_user_attributes" VALUES(24,4,'num_parameters','1000');
INSERT INTO "trial_user_attributes" VALUES(25,5,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [1], "base_channels": 24, "pattern": "cantor", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.03169298843744965, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 4}');
INSERT INTO "trial_user_attributes" VALUES(26,5,'traceback','"Traceback ..."');
INSERT INTO "trial_user_attributes" VALUES(27,5,'failure','{"kind": "error", "message": "a bug"}');
INSERT INTO "trial_user_attributes" VALUES(28,7,'alone','true');
INSERT INTO "trial_user_attributes" VALUES(29,7,'retry_of','5');
INSERT INTO "trial_user_attributes" VALUES(30,7,'attempt','2');
INSERT INTO "trial_user_attributes" VALUES(31,7,'follows','5');
INSERT INTO "trial_user_attributes" VALUES(32,6,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [2, 2], "base_channels": 16, "pattern": "cantor", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.02104832049240653, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 5}');
INSERT INTO "trial_user_attributes" VALUES(33,6,'failure','{"kind": "out_of_memory", "message": "no memory"}');
INSERT INTO "trial_user_attributes" VALUES(34,7,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [2, 2], "base_channels": 16, "pattern": "cantor", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.02104832049240653, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 6}');
INSERT INTO "trial_user_attributes" VALUES(35,7,'num_parameters','1006');
INSERT INTO "trial_user_attributes" VALUES(36,7,'flops','1000000');
INSERT INTO "trial_user_attributes" VALUES(37,7,'device','"cpu x86_64"');
INSERT INTO "trial_user_attributes" VALUES(38,7,'worker','0');
INSERT INTO "trial_user_attributes" VALUES(39,7,'environment','{"versions": {"python": "3.11.7", "fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"}, "git_commit": null}');
INSERT INTO "trial_user_attributes" VALUES(40,7,'execution','{"mode": "eager", "reason": "no GPU"}');
INSERT INTO "trial_user_attributes" VALUES(41,7,'history','[{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5748405044314192, "val_loss": 1.0, "val_accuracy": 0.5748405044314192, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.7863125079643598, "val_loss": 0.5, "val_accuracy": 0.7863125079643598, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 3, "train_loss": 0.3333333333333333, "train_accuracy": 0.8641087104474632, "val_loss": 0.3333333333333333, "val_accuracy": 0.8641087104474632, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 4, "train_loss": 0.25, "train_accuracy": 0.8927283339422076, "val_loss": 0.25, "val_accuracy": 0.8927283339422076, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 5, "train_loss": 0.2, "train_accuracy": 0.9032569050399913, "val_loss": 0.2, "val_accuracy": 0.9032569050399913, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 6, "train_loss": 0.16666666666666666, "train_accuracy": 0.9071301498917778, "val_loss": 0.16666666666666666, "val_accuracy": 0.9071301498917778, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 7, "train_loss": 0.14285714285714285, "train_accuracy": 0.9085550370433733, "val_loss": 0.14285714285714285, "val_accuracy": 0.9085550370433733, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}, {"epoch": 8, "train_loss": 0.125, "train_accuracy": 0.9090792237324344, "val_loss": 0.125, "val_accuracy": 0.9090792237324344, "learning_rate": 0.02104832049240653, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}]');
INSERT INTO "trial_user_attributes" VALUES(42,7,'seconds','0.0004286540006432915');
INSERT INTO "trial_user_attributes" VALUES(43,8,'config','{"data": {"name": "digits", "root": "data", "image_size": null, "limit": null, "validation_share": 0.2, "augment": {"flip": false, "shift": 0, "cutout": 0}, "skip_broken": false, "seed": 0}, "model": {"fractal_levels": [1], "base_channels": 16, "pattern": "julia", "pattern_resolution": 32, "stem": "auto", "global_attention": "spatial", "drop_path": "local", "drop_path_prob": 0.15, "activation": "gelu", "continuous_learning": true, "dropout": 0.2, "init": "fan_in"}, "train": {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.01562252940407349, "momentum": 0.9, "weight_decay": 0.01, "schedule": "one_cycle", "warmup_epochs": 0.0, "label_smoothing": 0.1, "clip_grad_norm": null, "early_stopping": null, "keep_best": false, "precision": "auto", "cuda_graph": true, "tensorboard": null}, "seed": 7}');
INSERT INTO "trial_user_attributes" VALUES(44,8,'num_parameters','1007');
INSERT INTO "trial_user_attributes" VALUES(45,8,'flops','1000000');
INSERT INTO "trial_user_attributes" VALUES(46,8,'device','"cpu x86_64"');
INSERT INTO "trial_user_attributes" VALUES(47,8,'worker','0');
INSERT INTO "trial_user_attributes" VALUES(48,8,'environment','{"versions": {"python": "3.11.7", "fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"}, "git_commit": null}');
INSERT INTO "trial_user_attributes" VALUES(49,8,'execution','{"mode": "eager", "reason": "no GPU"}');
INSERT INTO "trial_user_attributes" VALUES(50,8,'history','[{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5911958529307504, "val_loss": 1.0, "val_accuracy": 0.5911958529307504, "learning_rate": 0.01562252940407349, "seconds": 0.5, "step_seconds": 0.4, "val_seconds": 0.1, "images_per_second": 2300.0, "memory_mib": 512.0}]');
INSERT INTO "trial_user_attributes" VALUES(51,8,'seconds','0.00021257899970805738');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.9,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,7.49735278191734133557e-01,'FINITE');
INSERT INTO "trial_values" VALUES(3,4,0,0.9,'FINITE');
INSERT INTO "trial_values" VALUES(4,7,0,0.95,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-22 07:13:59.756059','2026-11-22 07:14:00.074136');
INSERT INTO "trials" VALUES(2,1,1,'PRUNED','2026-11-22 07:14:00.159426','2026-11-22 07:14:00.204529');
INSERT INTO "trials" VALUES(3,2,1,'PRUNED','2026-11-22 07:14:00.264775','2026-11-22 07:14:00.346502');
INSERT INTO "trials" VALUES(4,3,1,'COMPLETE','2026-11-22 07:14:00.400152','2026-11-22 07:14:00.498596');
INSERT INTO "trials" VALUES(5,4,1,'FAIL','2026-11-22 07:14:00.543991','2026-11-22 07:14:00.585419');
INSERT INTO "trials" VALUES(6,5,1,'FAIL','2026-11-22 07:14:00.633100','2026-11-22 07:14:00.995260');
INSERT INTO "trials" VALUES(7,6,1,'COMPLETE','2026-11-22 07:14:01.104899','2026-11-22 07:14:01.209343');
INSERT INTO "trials" VALUES(8,7,1,'RUNNING','2026-11-22 07:14:01.290178',NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
