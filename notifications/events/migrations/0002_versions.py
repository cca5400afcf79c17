from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("hub_events", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="topichead",
            name="version",
            field=models.PositiveBigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="topichead",
            name="version_epoch",
            field=models.CharField(blank=True, db_default="", default="", max_length=255),
        ),
        migrations.AddField(
            model_name="storedevent",
            name="version",
            field=models.PositiveBigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="storedevent",
            name="version_epoch",
            field=models.CharField(blank=True, db_default="", default="", max_length=255),
        ),
    ]
