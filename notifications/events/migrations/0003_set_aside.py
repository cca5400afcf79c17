from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hub_events", "0002_versions")]

    operations = [
        migrations.CreateModel(
            name="SetAsideEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("topic", models.CharField(max_length=255)),
                ("type", models.CharField(max_length=120)),
                ("time", models.DateTimeField()),
                ("encoded", models.TextField(verbose_name="event")),
                ("exclude", models.CharField(blank=True, max_length=64)),
                ("version", models.PositiveBigIntegerField(default=0)),
                ("version_epoch", models.CharField(blank=True, default="", max_length=255)),
                (
                    "reason",
                    models.CharField(
                        choices=[
                            ("undeclared", "nothing declares its topic"),
                            ("unreadable", "its text is no event"),
                            ("refused", "the database refused its offset"),
                        ],
                        max_length=16,
                    ),
                ),
                ("error", models.TextField(blank=True, help_text="What was met at the last attempt.")),
                ("attempts", models.PositiveIntegerField(default=1)),
                ("set_aside_at", models.DateTimeField(auto_now_add=True)),
                ("tried_at", models.DateTimeField(verbose_name="last tried at")),
            ],
            options={
                "verbose_name": "event set aside",
                "verbose_name_plural": "events set aside",
                "ordering": ("-pk",),
                "indexes": [models.Index(fields=["reason", "topic"], name="hub_events_set_aside")],
            },
        ),
    ]
